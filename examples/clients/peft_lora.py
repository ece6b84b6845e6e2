"""peft: LoRA on the linear maps of a ConvNeXt, the kernels' own parameters trained as well, then merged.

python examples/clients/peft_lora.py [out=out/clients/peft]
"""

import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from shapes import pictures

import s4nd  # noqa: F401  (registers the models)

SMALL = {'img_size': 32, 'depths': (1, 1, 1, 1), 'dims': (8, 12, 16, 24), 'd_state': 8, 'num_classes': 10}


def make() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model('s4nd_convnext_micro', ls_init_value=1.0, **SMALL)


def main(out: Path) -> str:
    config = LoraConfig(r=4, target_modules=r'.*\.mlp\.fc[12]', modules_to_save=['head.fc', 'kernels.0', 'kernels.1'])
    model = get_peft_model(make(), config)
    trained, total = model.get_nb_trainable_parameters()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any('log_dt' in name for name in names) and any('lora_A' in name for name in names)
    images, labels = pictures(40, 32)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    model.save_pretrained(out)
    again = PeftModel.from_pretrained(make(), out).eval()
    merged = model.merge_and_unload()
    with torch.no_grad():
        for size in (32, 64):
            images, _ = pictures(4, size)
            torch.testing.assert_close(merged(images), again(images), atol=1e-4, rtol=1e-4)
    return f'{trained} of {total} parameters, loss {losses[0]:.3f} -> {losses[-1]:.3f}; saved and merged models equal'


if __name__ == '__main__':
    options = dict(word.partition('=')[::2] for word in sys.argv[1:])
    print(main(Path(options.get('out', 'out/clients/peft'))))
