# NEU-DET in COCO2017's layout, 1440 training and 360 validation images of six
# defects of steel, and the schedule of benchmarks/real_images, 180 steps per
# epoch.
# `python -m benchmarks.real_images.neu_det` makes the layout from the
# original files.
_base_ = [
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py'
]
classes = ('crazing', 'inclusion', 'patches', 'pitted_surface',
           'rolled-in_scale', 'scratches')
data_root = 'data/neu_det/'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                   'scale_factor'))
]
data = dict(data_root=data_root, metainfo=dict(classes=classes))
loader = dict(batch_size=8, num_workers=0, persistent_workers=False)
train_dataloader = dict(
    dataset=dict(pipeline=train_pipeline, **data), **loader)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **data), **loader)
test_dataloader = val_dataloader
val_evaluator = dict(
    ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

max_epochs = 4
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True)
]
optim_wrapper = dict(
    optimizer=dict(lr=0.01), clip_grad=dict(max_norm=10, norm_type=2))
auto_scale_lr = dict(base_batch_size=8)
custom_imports = dict(imports=['mmpsbn'], allow_failed_imports=False)
