_base_ = 'mmdet::atss/atss_r50_fpn_1x_coco.py'
model = dict(backbone=dict(norm_cfg=dict(type='psBN'), norm_eval=False))
custom_imports = dict(imports=['mmpsbn'], allow_failed_imports=False)
