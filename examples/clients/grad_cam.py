"""pytorch-grad-cam: heat maps of a trained model at two sizes of the same pictures.

python examples/clients/grad_cam.py
"""

import torch
import torch.nn.functional as F
from pytorch_grad_cam import EigenCAM, GradCAM, HiResCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from shapes import SIZE, pictures, trained_model


def main() -> str:
    model = trained_model()
    agreement = {}
    for method in (GradCAM, HiResCAM, EigenCAM):
        maps = []
        for size in (SIZE, 2 * SIZE):
            images, labels = pictures(6, size)
            with method(model=model, target_layers=[model.norm]) as cam:
                found = cam(input_tensor=images, targets=[ClassifierOutputTarget(int(label)) for label in labels])
            assert found.shape == (6, size, size)
            maps.append(torch.from_numpy(found))
        coarse = F.avg_pool2d(maps[1][:, None], 2)[:, 0]
        agreement[method.__name__] = torch.corrcoef(torch.stack([maps[0].flatten(), coarse.flatten()]))[0, 1].item()
    assert agreement['GradCAM'] > 0.7
    named = ', '.join(f'{name} {value:.2f}' for name, value in agreement.items())
    return f'correlation of the maps at {SIZE} and {2 * SIZE} pixels: {named}'


if __name__ == '__main__':
    print(main())
