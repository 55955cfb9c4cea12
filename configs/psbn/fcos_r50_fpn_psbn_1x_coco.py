_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
# The Caffe weights of the base have their statistics merged into the affine
# parameters, so they fit frozen BN only.
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True),
    backbone=dict(
        norm_cfg=dict(type='psBN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
        init_cfg=dict(checkpoint='torchvision://resnet50')))
# The base has bias_decay_mult=0, which includes norm layers.
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=1.))
custom_imports = dict(imports=['mmpsbn'], allow_failed_imports=False)
