_base_ = './faster-rcnn_r50_fpn_mimicnorm_1x_coco.py'
mimic = dict(conv_cfg=dict(type='MimicConv'), norm_cfg=dict(type='MimicNorm'))
model = dict(
    neck=mimic,
    roi_head=dict(
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead', conv_out_channels=256, **mimic)))
