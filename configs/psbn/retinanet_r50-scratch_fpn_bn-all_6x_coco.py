_base_ = './retinanet_r50-scratch_fpn_bn_6x_coco.py'
norm_cfg = dict(type='BN', requires_grad=True)
# Convs that the levels share, norm layers that they do not: see README.md.
model = dict(
    neck=dict(norm_cfg=norm_cfg),
    bbox_head=dict(type='RetinaSepBNHead', num_ins=5, norm_cfg=norm_cfg))
