_base_ = './faster-rcnn_r50_fpn_bn-all_1x_coco.py'
norm_cfg = dict(type='SyncBN')
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg)))
