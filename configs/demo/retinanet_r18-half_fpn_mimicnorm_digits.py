# RetinaNet with MimicNorm: no norm layers but a last BN.
_base_ = './retinanet_r18-half_fpn_psbn_digits.py'
mimic = dict(conv_cfg=dict(type='MimicConv'), norm_cfg=dict(type='MimicNorm'))
model = dict(
    backbone=mimic, bbox_head=dict(type='LastBNRetinaHead', **mimic))
