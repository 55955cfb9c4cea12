# Faster R-CNN with MimicNorm: no norm layers but a last BN for each head.
_base_ = './faster-rcnn_r18-half_fpn_psbn_digits.py'
model = dict(
    backbone=dict(
        conv_cfg=dict(type='MimicConv'), norm_cfg=dict(type='MimicNorm')),
    rpn_head=dict(type='LastBNRPNHead'),
    roi_head=dict(bbox_head=dict(cls_predictor_cfg=dict(type='LastBNLinear'))))
