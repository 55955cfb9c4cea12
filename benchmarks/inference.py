"""Time of an image: PyTorch against ONNX Runtime.

    python -m benchmarks.inference [CONFIG ...] [--shape 480 800] [--rounds 10]

Each detector, with random weights, is exported by the function behind
tools/export_onnx.py and compared on images there. Then one image goes through
it as trained, through the stock model that tools/convert.py --to bn gives,
with BN folded into its convs, and through ONNX Runtime, all with their
post-processing, in turns within each round, on the same number of threads.
Printed are the median time and the median over rounds of the ratios.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from mmcv import imwrite
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger

from mmpsbn.analysis import ratios, time_alternately
from mmpsbn.detectors.build import build_model
from mmpsbn.export import export_onnx
from mmpsbn.export.onnx_file import folded_stock, prepare_image

CONFIGS = [
    f'configs/{norm}/{detector}_r50_fpn_{norm}_1x_coco.py'
    for detector in ('faster-rcnn', 'retinanet')
    for norm in ('psbn', 'mimicnorm')
]


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
        dict(state_dict=model.state_dict()),
        'random',
        [image],
        str(file),
        shape,
        dynamic=False,
        raw=False,
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='*', default=CONFIGS)
    parser.add_argument('--shape', type=int, nargs=2, default=[480, 800])
    parser.add_argument('--rounds', type=int, default=10)
    args = parser.parse_args()
    register_all_modules()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    height, width = args.shape
    print(
        f'torch {torch.__version__}, ONNX Runtime '
        f'{onnxruntime.__version__}, {torch.get_num_threads()} threads, '
        f'one image of {height} x {width}\n\n'
        '| Config | as trained, ms | stock, folded | ONNX Runtime |\n'
        '|---|---|---|---|'
    )
    for path in args.configs:
        cfg = Config.fromfile(path)
        cfg.model.backbone.init_cfg = None
        with tempfile.TemporaryDirectory() as folder:
            ways = contenders(cfg, tuple(args.shape), Path(folder))
        seconds = time_alternately(ways, args.rounds)
        _, folded, onnx = ratios(seconds).values()
        print(
            f'| {Path(path).stem} '
            f'| {statistics.median(seconds["trained"]) * 1e3:.0f} '
            f'| {folded:.2f} | {onnx:.2f} |',
            flush=True,
        )


if __name__ == '__main__':
    main()
