# RetinaNet with MimicNorm: no norm layers but a last BN.
_base_ = './retinanet_r18-half_fpn_psbn_digits.py'
model = dict(
    backbone=dict(
        conv_cfg=dict(type='MimicConv'), norm_cfg=dict(type='MimicNorm')),
    bbox_head=dict(type='LastBNRetinaHead'))
