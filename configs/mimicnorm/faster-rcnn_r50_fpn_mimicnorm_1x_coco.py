# Finetuning. The weights are made from ImageNet's by tools/convert.py, see
# README.md.
_base_ = '../psbn/faster-rcnn_r50_fpn_bn_1x_coco.py'
model = dict(
    backbone=dict(
        conv_cfg=dict(type='MimicConv'),
        norm_cfg=dict(type='MimicNorm'),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/resnet50_mimicnorm.pth')),
    rpn_head=dict(type='LastBNRPNHead'),
    roi_head=dict(bbox_head=dict(cls_predictor_cfg=dict(type='LastBNLinear'))))
custom_imports = dict(imports=['mmpsbn'], allow_failed_imports=False)
