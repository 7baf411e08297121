"""One thread: the models are tiny, and the machines that run these tests are small."""

import torch

torch.set_num_threads(1)
