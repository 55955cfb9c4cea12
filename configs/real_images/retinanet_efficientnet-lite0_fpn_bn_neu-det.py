# RetinaNet on EfficientNet-Lite0 from its ImageNet weights, for NEU-DET.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    './_base_/neu_det.py'
]
model = dict(
    # The weights were trained on (x - 127) / 128.
    data_preprocessor=dict(mean=[127.] * 3, std=[128.] * 3),
    backbone=dict(
        _delete_=True,
        type='EfficientNetLite',
        arch='lite0',
        out_indices=(2, 4, 6),
        norm_cfg=dict(type='BN', eps=1e-3, requires_grad=True),
        norm_eval=False,
        init_cfg=dict(
            type='Pretrained', checkpoint='efficientnet_lite://lite0')),
    neck=dict(
        in_channels=[40, 112, 320], start_level=0, out_channels=64,
        num_outs=4),
    bbox_head=dict(
        num_classes=6,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(strides=[8, 16, 32, 64])))
# It learns more slowly than Faster R-CNN.
max_epochs = 6
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True)
]
