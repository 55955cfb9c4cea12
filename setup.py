from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

about = {}
exec((ROOT / 'mmpsbn' / 'version.py').read_text(), about)

setup(
    name='mmpsbn',
    version=about['__version__'],
    description='Normalization for MMDetection that keeps every filter alive',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmpsbn', 'mmpsbn.*']),
    # Where mim looks for them; links to the originals.
    package_data={
        'mmpsbn': [
            '.mim/model-index.yml', '.mim/tools/*', '.mim/configs/*/*',
            '.mim/configs/*/_base_/*'
        ]
    },
    python_requires='>=3.10',
    # MMCV, MMEngine and MMDetection are left to the environment: each has
    # two distributions that install the same import names, and MMCV has to
    # be compiled for the torch at hand. `import mmpsbn` checks what it finds.
    # Without bounds, so pip never replaces an installed torch; importing
    # mmpsbn reports a version that is known not to work.
    install_requires=['torch'],
    extras_require={'demo': ['scikit-learn']},
)
