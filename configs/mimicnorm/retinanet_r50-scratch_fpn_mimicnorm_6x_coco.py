# From random weights.
_base_ = '../psbn/retinanet_r50-scratch_fpn_bn_6x_coco.py'
model = dict(
    backbone=dict(
        conv_cfg=dict(type='MimicConv'), norm_cfg=dict(type='MimicNorm')),
    bbox_head=dict(type='LastBNRetinaHead'))
custom_imports = dict(imports=['mmpsbn'], allow_failed_imports=False)
