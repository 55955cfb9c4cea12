# The baseline: BN that is trained, where MMDetection freezes it.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(backbone=dict(norm_eval=False))
# Every config clips as MimicNorm has to: in its body, no norm layer bounds the
# effect of a rare batch.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
