"""Make the demo's detection task: digits on photographs, as COCO2017."""

import argparse

from mmpsbn.cli.errors import exit_with_message
from mmpsbn.datasets import make_digits
from mmpsbn.errors import InputError


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='data/digits', help='folder to create')
    parser.add_argument(
        '--train', type=int, default=800, help='number of training scenes'
    )
    parser.add_argument(
        '--val', type=int, default=200, help='number of validation scenes'
    )
    parser.add_argument(
        '--size', type=int, default=160, help='side of a scene in pixels'
    )
    parser.add_argument('--seed', type=int, default=0, help='random seed')
    return parser.parse_args()


def main():
    args = parse_args()
    try:
        make_digits(args.out, args.train, args.val, args.size, args.seed)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise InputError(str(error)) from error
    print(f'{args.train} + {args.val} scenes in {args.out}')


if __name__ == '__main__':
    with exit_with_message():
        main()
