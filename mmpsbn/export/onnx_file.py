"""Detectors as ONNX files, compared with PyTorch before they are kept."""

import copy
import json
import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from typing import NamedTuple

import mmcv
import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.structures import InstanceData
from mmengine.utils import digit_version
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.convert.stock_config import stock_model
from mmpsbn.convert.to_stock import stock_state
from mmpsbn.detectors.agreement import Agreement
from mmpsbn.detectors.build import build_model, load_images, load_model
from mmpsbn.detectors.outputs import BatchRunner
from mmpsbn.errors import InputError, describe_error
from mmpsbn.export.exportable import Exportable
from mmpsbn.export.operators import onnx_translations
from mmpsbn.files import output_files
from mmpsbn.stack import check_packages

OPSET = 18
# A ResNet with FPN halves the size five times.
MULTIPLE = 32
# Convolutions that BN folds into.
PLAIN = (nn.Conv2d, Conv2dAdaptivePadding)


class Exported(NamedTuple):
    """An ONNX file, compared with the model it was made from."""

    agreement: Agreement
    before: Counter
    """Nodes of the trained model's graph, not optimized, by operator."""
    after: Counter
    """Nodes of the file."""


def export_onnx(
    cfg: Config,
    checkpoint: Checkpoint,
    images: Sequence[str],
    out: str,
    *,
    shape: tuple[int, int] | None = None,
    dynamic: bool = False,
    raw: bool = False,
) -> Exported:
    """Write a detector as ONNX, and compare it with PyTorch.

    psBN, BN, MimicNorm and last BN are folded into convolutions and linear
    layers.

    Args:
        cfg (Config): The config of the trained model.
        checkpoint (Checkpoint): The trained model.
        images (list[str]): Files of images to compare on.
        out (str): The file to write.
        shape (tuple[int, int], optional): Height and width of the input, in
            pixels. Defaults to those of the config's test images.
        dynamic (bool): Whether the file takes any number of images, of any
            size in multiples of 32 pixels. Defaults to False.
        raw (bool): Whether its outputs are those of the heads instead of
            detections. Defaults to False.

    Raises:
        InputError: If the checkpoint does not fit, if the detector cannot be
            exported, if the file cannot be written, or if onnxruntime and
            PyTorch differ. Nothing is written then.
    """
    check_onnx()
    shape = shape or input_shape(cfg)
    model = load_model(cfg, checkpoint)
    folded = Exportable(folded_stock(cfg, model))
    check_runs(model, folded, prepare_image(cfg, images[0], model, shape))
    before = _count(_program(Exportable(model), shape, optimize=False))
    program, agreement = checked_program(
        cfg, checkpoint, model, folded, images, shape, dynamic=dynamic, raw=raw
    )
    with output_files(out) as (file,):
        program.save(file)
    return Exported(agreement, before, _count(program))


def check_onnx() -> None:
    """Raise an InputError if ONNX files cannot be made in this environment."""
    check_packages('ONNX', 'onnx', 'onnxruntime', 'onnxscript')
    if digit_version(torch.__version__) < digit_version('2.5'):
        raise InputError(
            f'torch {torch.__version__} cannot write these ONNX files: the exporter '
            'needs torch 2.5 or later. Install a newer torch.'
        )


def checked_program(
    cfg: Config,
    checkpoint: Checkpoint,
    model: nn.Module,
    exportable: Exportable,
    images: Sequence[str],
    shape: tuple[int, int],
    *,
    dynamic: bool = False,
    raw: bool = False,
):
    """The ONNX program of a model, compared with the trained model.

    Args:
        cfg (Config): The config of the trained model.
        checkpoint (Checkpoint): The trained model, as a file.
        model (nn.Module): The trained model.
        exportable (Exportable): Computes the same, and becomes the program.
        images (list[str]): Files of images to compare on.
        shape (tuple[int, int]): As ``dynamic`` and ``raw``, see
            :func:`export_onnx`.

    Returns:
        tuple: The program (``torch.onnx.ONNXProgram``), and an Agreement.

    Raises:
        InputError: If onnxruntime and PyTorch differ.
    """
    program = _program(exportable, shape, dynamic)
    session = _session(program)
    agreement = Agreement.total(
        _compare(
            session, exportable.names, model, prepare_image(cfg, file, model, shape)
        )
        for file in images
    )
    agreement.require('onnxruntime')
    _keep_outputs(program.model, exportable.names[2:] if raw else exportable.names[:2])
    program.model.metadata_props.update(_metadata(checkpoint, model))
    return program, agreement


def folded_stock(cfg: Config, model: nn.Module) -> nn.Module:
    """Return the stock model that computes the same, with BN folded."""
    stock = build_model(cfg, stock_model(cfg.model))
    stock.load_state_dict(stock_state(model, stock))
    fold(stock)
    return stock


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Fold each BN into the plain conv before it that no other layer uses.

    MMCV's ``fuse_conv_bn`` folds several BN into a conv that they share, and
    folds into convs that compute with other weights than their own.
    """
    uses = Counter(child for module in model.modules() for child in module.children())
    for module in model.modules():
        before = None
        for name, layer in list(module.named_children()):
            if (
                isinstance(layer, _BatchNorm)
                and type(before) in PLAIN
                and uses[before] == 1
                and _comes_first(module)
            ):
                fused = fuse_conv_bn_eval(before, layer)
                before.weight, before.bias = fused.weight, fused.bias
                module._modules[name] = nn.Identity()
            before = layer


def _comes_first(module: nn.Module) -> bool:
    """Return whether the norm layer of a module directly follows its conv."""
    return not isinstance(module, ConvModule) or 'conv norm' in ' '.join(module.order)


def check_runs(model: nn.Module, exportable: Exportable, data: dict) -> None:
    """Run a detector on one image, and raise an InputError if it fails."""
    height, width = data['inputs'].shape[-2:]
    try:
        with torch.no_grad():
            exportable(data['inputs'])
        BatchRunner(data).detections(model)
    except InputError:
        raise
    except Exception as error:  # A model may ask for anything.
        raise InputError(
            f'{type(model).__name__} fails on an image of {height} x {width} '
            f'pixels: {describe_error(error)}. Try a larger --shape. If '
            'tools/test.py fails as well, the cause is in MMDetection or in '
            'the config.'
        ) from error


@explain_config_errors()
def input_shape(cfg: Config) -> tuple[int, int]:
    """Return height and width that the config's landscape test images fit in."""
    for step in get_test_pipeline_cfg(cfg):
        scale = step.get('scale')
        if _resizes(step) and scale:
            sizes = [scale] * 2 if isinstance(scale, int) else sorted(scale)
            return tuple(-(-size // MULTIPLE) * MULTIPLE for size in sizes)
    raise InputError(
        "the config's test pipeline has no Resize with a scale; "
        'give the shape by --shape HEIGHT WIDTH.'
    )


def _resizes(step: dict) -> bool:
    kind = getattr(step['type'], '__name__', step['type'])
    return kind.rpartition('.')[2] in ('Resize', 'FixScaleResize')


def prepare_image(
    cfg: Config, file: str, model: nn.Module, shape: tuple[int, int]
) -> dict:
    """Load an image, resized to fit a shape and padded to it with zeros.

    Args:
        cfg (Config): The config, whose test pipeline resizes images.
        file (str): The image.
        model (nn.Module): The detector, which normalizes the image.
        shape (tuple[int]): The height and the width in pixels.

    Returns:
        dict: ``inputs`` of ``(1, 3, *shape)`` and ``data_samples``.

    Raises:
        InputError: If the test pipeline of the config has no step that resizes
            it.
    """
    height, width = mmcv.imread(file).shape[:2]
    factor = min(shape[0] / height, shape[1] / width)
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    cfg = copy.deepcopy(cfg)
    steps = [step for step in get_test_pipeline_cfg(cfg) if _resizes(step)]
    if not steps and size != (width, height):
        raise InputError(
            f'{file} has {height} x {width} pixels and has to be resized to '
            f'{size[1]} x {size[0]}, but the test pipeline of the config has no '
            "step of type 'Resize'. Add one to it."
        )
    for step in steps:
        step.pop('scale_factor', None)
        step.update(scale=size, keep_ratio=False)
    data = load_images(cfg, [file], model)
    # What data_preprocessor padded is beyond the image.
    inputs = data['inputs'][..., : shape[0], : shape[1]]
    data['inputs'] = F.pad(
        inputs, (0, shape[1] - inputs.shape[3], 0, shape[0] - inputs.shape[2])
    )
    for sample in data['data_samples']:
        # The file does not know where an image ends.
        sample.set_metainfo(dict(img_shape=shape))
    return data


def _program(
    model: Exportable,
    shape: tuple[int, int],
    dynamic: bool = False,
    optimize: bool = True,
):
    """Return the ONNX program of a model (``torch.onnx.ONNXProgram``)."""
    example = torch.zeros(2 if dynamic else 1, 3, *shape)
    sizes = None
    if dynamic:
        dim = torch.export.Dim
        sizes = (
            {0: dim('batch'), 2: MULTIPLE * dim('rows'), 3: MULTIPLE * dim('columns')},
        )
    try:
        with _quiet():
            return torch.onnx.export(
                model,
                (example,),
                input_names=['images'],
                output_names=model.names,
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=sizes,
                custom_translation_table=onnx_translations(),
                optimize=optimize,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise InputError(
            f"torch's exporter cannot follow this {type(model.model).__name__}: "
            f'{cause.rstrip(".")}. Nothing was written. Use a RetinaNet or a Faster '
            'R-CNN of MMDetection, or report the error.'
        ) from error


@contextmanager
def _quiet():
    """Silence the exporter, which remarks on the absence of torchvision."""
    logger = logging.getLogger('torch')
    level = logger.level
    torch._logging.set_logs(all=logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        torch._logging.set_logs(all=level or logging.WARNING)


def _session(program):
    import onnxruntime

    return onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=['CPUExecutionProvider']
    )


def _compare(session, names: list[str], model: nn.Module, data: dict) -> Agreement:
    """Compare the program with the trained model on one image."""
    outputs = session.run(None, {'images': data['inputs'].numpy()})
    found = dict(zip(names, map(torch.from_numpy, outputs)))
    proposals = None
    if 'rois' in found:
        boxes = found.pop('rois')[:, 1:]
        # Boxes that fill up the number of proposals have no area.
        real = boxes.any(1)
        proposals = [InstanceData(bboxes=boxes[real])]
        for name in ('cls_score', 'bbox_pred'):
            found[name] = found[name][real]
    detections = remove_padding(found.pop('dets')[0], found.pop('labels')[0])
    run = BatchRunner(data, proposals)
    return Agreement.with_model(
        list(found.values()), run(model), [detections], model, run
    )


def remove_padding(dets: Tensor, labels: Tensor) -> dict:
    """Return boxes, scores and labels of an image without the padding.

    Args:
        dets (Tensor): ``(K, 5)``, x1, y1, x2, y2 in pixels and the score.
        labels (Tensor): ``(K,)``, -1 for padding.
    """
    valid = labels >= 0
    return dict(bboxes=dets[valid, :4], scores=dets[valid, 4], labels=labels[valid])


def _keep_outputs(model, names: list[str]) -> None:
    """Remove the other outputs, and nodes that only they need."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    outputs = model.graph.outputs
    outputs[:] = [output for output in outputs if output.name in names]
    RemoveUnusedNodesPass()(model)


def _count(program) -> Counter:
    return Counter(node.op_type for node in program.model.graph)


def _metadata(checkpoint: Checkpoint, model: nn.Module) -> dict:
    """Return what a program that runs the file must know, as JSON."""
    preprocessor = model.data_preprocessor
    meta = checkpoint.meta.get('dataset_meta') or {}
    values = dict(
        classes=meta.get('classes') or meta.get('CLASSES'),
        bgr_to_rgb=preprocessor._channel_conversion,
    )
    if preprocessor._enable_normalize:
        values.update(
            mean=preprocessor.mean.flatten().tolist(),
            std=preprocessor.std.flatten().tolist(),
        )
    return {key: json.dumps(value) for key, value in values.items()}
