# The baseline: BN that is trained, where MMDetection freezes it.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
model = dict(backbone=dict(norm_eval=False))
