"""Lightning: a LightningModule around a model, with its weight averaging and checkpoints.

python examples/clients/lightning_module.py [out=out/clients/lightning]
"""

import logging
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from shapes import accuracy, make_model, pictures
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import s4nd


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(s4nd.param_groups(self.model, lr=1e-2, weight_decay=0.01))


def main(out: Path) -> str:
    warnings.filterwarnings('ignore', module='lightning')
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    loader = DataLoader(TensorDataset(*pictures(1000)), 50, shuffle=True)
    saver = ModelCheckpoint(out, filename='last', enable_version_counter=False)
    trainer = L.Trainer(
        max_epochs=8, accelerator='cpu', logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[EMAWeightAveraging(decay=0.9), saver],
    )  # fmt: skip
    module = Classifier()
    trainer.fit(module, loader)
    found = accuracy(module.model.eval())
    again = Classifier.load_from_checkpoint(saver.best_model_path, weights_only=True)
    images, _ = pictures(4)
    with torch.no_grad():
        torch.testing.assert_close(again.model.eval()(images), module.model(images))
    assert found > 25
    return f'8 epochs with EMAWeightAveraging: accuracy {found:.0f} %, the averaged checkpoint reloads'


if __name__ == '__main__':
    options = dict(word.partition('=')[::2] for word in sys.argv[1:])
    print(main(Path(options.get('out', 'out/clients/lightning'))))
