_base_ = 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'
norm_cfg = dict(type='psBN')  # The base sets eps and momentum.
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
    # MMDetection's own SSDHead fails in predictions.
    bbox_head=dict(type='mmpsbn.SSDHead', norm_cfg=norm_cfg))
custom_imports = dict(
    imports=['mmpsbn', 'mmpsbn.models.ssd_head'], allow_failed_imports=False)
