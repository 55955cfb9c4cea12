# From random weights.
_base_ = '../psbn/faster-rcnn_r50-scratch_fpn_bn_6x_coco.py'
model = dict(
    backbone=dict(
        conv_cfg=dict(type='MimicConv'), norm_cfg=dict(type='MimicNorm')),
    rpn_head=dict(type='LastBNRPNHead'),
    roi_head=dict(bbox_head=dict(cls_predictor_cfg=dict(type='LastBNLinear'))))
custom_imports = dict(imports=['mmpsbn'], allow_failed_imports=False)
