_base_ = './retinanet_r50-scratch_fpn_mimicnorm_6x_coco.py'
mimic = dict(conv_cfg=dict(type='MimicConv'), norm_cfg=dict(type='MimicNorm'))
model = dict(
    neck=mimic,
    bbox_head=mimic)
