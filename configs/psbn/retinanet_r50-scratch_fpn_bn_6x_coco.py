# From random weights, by the schedule of MMDetection's scratch configs.
_base_ = './retinanet_r50_fpn_bn_1x_coco.py'
model = dict(backbone=dict(frozen_stages=-1, init_cfg=None))
max_epochs = 73
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=[65, 71],
        gamma=0.1)
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
