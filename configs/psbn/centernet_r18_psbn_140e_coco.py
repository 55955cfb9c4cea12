# CTResNetNeck takes no norm_cfg, so its norm layers stay BN.
_base_ = 'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py'
model = dict(backbone=dict(norm_cfg=dict(type='psBN')))
custom_imports = dict(imports=['mmpsbn'], allow_failed_imports=False)
