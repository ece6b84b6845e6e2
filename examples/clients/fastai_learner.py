"""fastai: `vision_learner` on a registered name, first its head alone, then all of it.

python examples/clients/fastai_learner.py
"""

import warnings

import torch
from fastai.callback.progress import ProgressCallback
from fastai.vision.all import DataLoaders, TensorCategory, TensorImage, accuracy, vision_learner
from shapes import MODEL, pictures

import s4nd  # noqa: F401  (registers the models)


def main() -> str:
    warnings.filterwarnings('ignore', module='fastai')
    torch.manual_seed(0)
    pairs = [
        [(TensorImage(image), TensorCategory(label)) for image, label in zip(*pictures(count, seed=seed), strict=True)]
        for seed, count in enumerate((1000, 100))
    ]
    loaders = DataLoaders.from_dsets(*pairs, bs=50, device=torch.device('cpu'), num_workers=0)
    learner = vision_learner(
        loaders, 's4nd_isotropic_mini', n_out=10, pretrained=False, normalize=False, metrics=accuracy,
        loss_func=torch.nn.CrossEntropyLoss(), concat_pool=False, **MODEL,
    )  # fmt: skip
    learner.remove_cb(ProgressCallback)
    with learner.no_logging():
        learner.freeze()
        learner.fit_one_cycle(1, 1e-2)
        learner.unfreeze()
        learner.fit_one_cycle(12, 1e-2)
    loss, share = learner.validate()
    assert share > 0.2
    return f'1 epoch frozen, 12 unfrozen: validation loss {loss:.2f}, accuracy {100 * share:.0f} %'


if __name__ == '__main__':
    print(main())
