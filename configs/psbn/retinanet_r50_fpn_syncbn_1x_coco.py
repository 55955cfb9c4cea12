_base_ = './retinanet_r50_fpn_bn_1x_coco.py'
model = dict(backbone=dict(norm_cfg=dict(type='SyncBN')))
