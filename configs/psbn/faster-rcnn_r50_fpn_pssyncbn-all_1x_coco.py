_base_ = './faster-rcnn_r50_fpn_bn-all_1x_coco.py'
norm_cfg = dict(type='psSyncBN')
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg)))
custom_imports = dict(imports=['mmpsbn'], allow_failed_imports=False)
