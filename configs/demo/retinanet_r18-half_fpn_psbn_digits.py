# RetinaNet with psBN, small enough for two cores: ResNet-18 and FPN at half
# and quarter of their widths, on images of 160 x 160.
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', './_base_/digits.py']
model = dict(
    backbone=dict(
        depth=18,
        base_channels=32,
        frozen_stages=-1,
        norm_cfg=dict(type='psBN'),
        norm_eval=False,
        init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64, num_outs=4),
    bbox_head=dict(
        num_classes={{_base_.num_classes}},
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(strides=[8, 16, 32, 64])))
optim_wrapper = dict(optimizer=dict(lr=0.04, weight_decay=1e-4))
# It learns to be confident later than Faster R-CNN does.
max_epochs = 24
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True)
]
