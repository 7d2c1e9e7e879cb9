"""One thread per test process: tests run side by side, and small matrices lose with more."""

import torch

torch.set_num_threads(1)
