_base_ = 'mmdet::yolo/yolov3_d53_8xb8-ms-608-273e_coco.py'
norm_cfg = dict(type='psBN')
# Darknet freezes its norm layers by default.
model = dict(
    backbone=dict(norm_cfg=norm_cfg, norm_eval=False),
    neck=dict(norm_cfg=norm_cfg),
    bbox_head=dict(norm_cfg=norm_cfg))
custom_imports = dict(imports=['mmpsbn'], allow_failed_imports=False)
