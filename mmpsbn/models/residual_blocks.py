"""The ends of the branches in MMDetection's residual blocks, for MimicNorm."""

from mmdet.models.backbones.darknet import ResBlock
from mmdet.models.backbones.efficientnet import EdgeResidual
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmdet.models.layers import InvertedResidual
from mmdet.models.layers.csp_layer import DarknetBottleneck
from mmdet.models.layers.res_layer import SimplifiedBasicBlock

from mmpsbn.layers import BRANCH_ENDS, BranchEnd

BRANCH_ENDS.update(
    {
        BasicBlock: BranchEnd('conv2'),
        Bottleneck: BranchEnd('conv3'),
        ResBlock: BranchEnd('conv2'),
        DarknetBottleneck: BranchEnd('conv2', lambda block: block.add_identity),
        InvertedResidual: BranchEnd(
            'linear_conv', lambda block: block.with_res_shortcut
        ),
        EdgeResidual: BranchEnd('conv2', lambda block: block.with_residual),
        SimplifiedBasicBlock: BranchEnd('conv2'),
    }
)
