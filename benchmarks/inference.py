"""Time of an image: PyTorch against ONNX Runtime.

    python -m benchmarks.inference [CONFIG ...] [--shape 480 800] [--rounds 10]

Each detector, with random weights, is exported by the function behind
tools/export_onnx.py and compared on images there. Then one image goes through
it as trained, through the stock model that tools/convert.py --to bn gives,
with BN folded into its convs, and through ONNX Runtime, all with their
post-processing, in turns within each round, on the same number of threads.
Printed are the median time and the median over rounds of the ratios. Each
detector is a row of inference.csv in the folder of --results.
"""

import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch
from mmcv import imwrite
from mmdet.utils import register_all_modules
from mmengine.logging import MMLogger

from benchmarks.shared.arguments import check_counts
from benchmarks.shared.costs import Costs, cost_parser, name_of
from mmpsbn.analysis import ratios, time_alternately
from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.cli.errors import exit_with_message
from mmpsbn.config.reading import read_config
from mmpsbn.detectors.build import build_model
from mmpsbn.export import export_onnx
from mmpsbn.export.onnx_file import folded_stock, prepare_image

CONFIGS = [
    f'configs/{norm}/{detector}_r50_fpn_{norm}_1x_coco.py'
    for detector in ('faster-rcnn', 'retinanet')
    for norm in ('psbn', 'mimicnorm')
]


class Measured(NamedTuple):
    """What is measured."""

    device: str
    config: str
    height: int
    width: int


class Cost(NamedTuple):
    """The time of an image."""

    torch: str
    onnxruntime: str
    rounds: int
    trained: float
    """As trained, in ms."""
    folded: float
    """The stock model with BN folded, relative to as trained."""
    onnx: float
    """ONNX Runtime, relative to as trained."""


def predictor(model, data):
    def predict():
        with torch.no_grad():
            model.predict(data['inputs'], data['data_samples'], rescale=False)

    return predict


def contenders(cfg, shape, folder):
    """The three ways to detect in an image, as functions."""
    image, file = str(folder / 'noise.png'), folder / 'model.onnx'
    imwrite(
        np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8), image
    )
    model = build_model(cfg)
    model.init_weights()
    export_onnx(
        cfg,
        Checkpoint('random.pth', dict(state_dict=model.state_dict())),
        [image],
        str(file),
        shape=shape,
    )
    data = prepare_image(cfg, image, model, shape)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(file), options, providers=['CPUExecutionProvider']
    )
    given = {'images': data['inputs'].numpy()}
    return dict(
        trained=predictor(model.eval(), data),
        folded=predictor(folded_stock(cfg, model), data),
        onnx=lambda: session.run(None, given),
    )


def main():
    parser = cost_parser(__doc__, 10)
    parser.add_argument('configs', nargs='*', default=CONFIGS)
    parser.add_argument('--shape', type=int, nargs=2, default=[480, 800])
    args = parser.parse_args()
    check_counts(parser, args, 'rounds')
    register_all_modules()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    costs = Costs(args.results / 'inference.csv', Measured, Cost)
    height, width = args.shape
    versions = torch.__version__, onnxruntime.__version__
    print(
        'torch {}, ONNX Runtime {}, '.format(*versions)
        + f'{name_of("cpu")}, one image of {height} x {width}\n\n'
        '| Config | as trained, ms | stock, folded | ONNX Runtime |\n'
        '|---|---|---|---|'
    )
    for path in args.configs:
        cfg = read_config(path)
        cfg.model.backbone.init_cfg = None
        with tempfile.TemporaryDirectory() as folder:
            ways = contenders(cfg, tuple(args.shape), Path(folder))
        seconds = time_alternately(ways, args.rounds)
        _, folded, onnx = ratios(seconds).values()
        trained = statistics.median(seconds['trained']) * 1e3
        config = Path(path).stem
        costs.add(
            Measured(name_of('cpu'), config, height, width),
            Cost(
                *versions,
                args.rounds,
                *(round(trained, 1), round(folded, 3), round(onnx, 3)),
            ),
        )
        print(f'| {config} | {trained:.0f} | {folded:.2f} | {onnx:.2f} |', flush=True)


if __name__ == '__main__':
    with exit_with_message('the measurements so far are in inference.csv'):
        main()
