# Finetuning. The weights are made from ImageNet's by tools/convert.py, see
# README.md.
_base_ = '../psbn/retinanet_r50_fpn_bn_1x_coco.py'
model = dict(
    backbone=dict(
        conv_cfg=dict(type='MimicConv'),
        norm_cfg=dict(type='MimicNorm'),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/resnet50_mimicnorm.pth')),
    bbox_head=dict(type='LastBNRetinaHead'))
custom_imports = dict(imports=['mmpsbn'], allow_failed_imports=False)
