"""Low-memory optimizers of PyTorch packages, for Keras models.

Under `KERAS_BACKEND=torch` each of them trains a Keras model like a Keras optimizer:
Keras provides schedules, `fit` and validation, and the package the update. The packages
are in the extra `peers`; this module contains none of their code.

The kernels of PyTorch are (outputs, inputs) matrices, those of Keras are (inputs,
outputs), with three axes in attention. Some methods treat rows and columns, or the
blocks of a head, differently. So each optimizer gets parameters with the shapes and
names of PyTorch's layers.

Where a paper trains embeddings, the output projection and vectors with Adam, so do
these classes, with the Adam of the same package.
"""

import re

import keras
import numpy as np

from et_optimizer.optimizers.learning_rates import TOKEN_SCALE

RANK_SHARE = 4  # Rank = width / 4, as in the papers of GaLore and APOLLO.
# From Keras paths to the parameter names of PyTorch language models.
_NAMES = (
    (r".*embedding/token/embeddings", "embed_tokens.weight"),
    (r".*embedding/position/embeddings", "embed_positions.weight"),
    (r"block_(\d+)/attention/query", r"layers.\1.self_attn.q_proj"),
    (r"block_(\d+)/attention/key", r"layers.\1.self_attn.k_proj"),
    (r"block_(\d+)/attention/value", r"layers.\1.self_attn.v_proj"),
    (r"block_(\d+)/attention/attention_output", r"layers.\1.self_attn.o_proj"),
    (r"block_(\d+)/attention_norm", r"layers.\1.input_layernorm"),
    (r"block_(\d+)/feed_forward_norm", r"layers.\1.post_attention_layernorm"),
    (r"block_(\d+)/expand", r"layers.\1.mlp.up_proj"),
    (r"block_(\d+)/contract", r"layers.\1.mlp.down_proj"),
    (r"^logits", "lm_head"),
    (r"/(kernel|gamma)$", ".weight"),
    (r"/(bias|beta)$", ".bias"),
)
# Packages whose helper objects have tensors as attributes.
_PACKAGES = ("apollo_torch", "galore_torch", "pytorch_optimizer", "bitsandbytes")
_TOKENS = re.compile(r"^(embed|lm_head\.weight)")
_HIDDEN = re.compile(r"(self_attn|mlp)\..*weight")


def torch_name(path):
    """The PyTorch name of the variable with a Keras path."""
    for pattern, name in _NAMES:
        path = re.sub(pattern, name, path)
    return path


class Layout:
    """The layout of a Keras variable in PyTorch.

    Args:
        variable: A `keras.Variable` of at most three axes.

    Attributes:
        name: Its name in PyTorch.
        shape: Its shape in PyTorch.
    """

    def __init__(self, variable):
        self.name = torch_name(variable.path)
        shape = tuple(variable.shape)
        self._own = shape
        if self.name.endswith(".bias") or len(shape) < 2:
            self._rows, self._is_turned = (int(np.prod(shape)),), False
        elif self.name.startswith("embed"):
            self._rows, self._is_turned = shape, False
        else:
            # The output kernel of attention has two input axes, all others have one.
            inputs = int(np.prod(shape[:-1])) if "o_proj" in self.name else shape[0]
            self._rows, self._is_turned = (inputs, int(np.prod(shape)) // inputs), True
        self.shape = self._rows[::-1] if self._is_turned else self._rows

    def to_torch(self, value):
        """Converts a tensor from Keras's layout to a contiguous one of PyTorch."""
        value = value.reshape(self._rows)
        return (value.t() if self._is_turned else value).contiguous()

    def to_keras(self, value):
        """Converts a tensor from PyTorch's layout to that of Keras."""
        return (value.t() if self._is_turned else value).reshape(self._own)


class TorchOptimizer(keras.optimizers.Optimizer):
    """A PyTorch optimizer as a Keras optimizer, for the backend "torch".

    Subclasses create the PyTorch optimizer in `make`. This class keeps a copy of the
    weights in PyTorch's layout. In a PyTorch model these would be the weights
    themselves, so that they do not count as state.

    Args:
        learning_rate: A float or a Keras schedule.
        **keywords: Arguments of every Keras optimizer.
    """

    def __init__(self, learning_rate=1e-3, **keywords):
        if keras.backend.backend() != "torch":
            raise RuntimeError(
                f"{type(self).__name__} runs on PyTorch; received the Keras backend "
                f"{keras.backend.backend()!r}. Set KERAS_BACKEND=torch before Keras is "
                "imported."
            )
        super().__init__(learning_rate=learning_rate, **keywords)

    def make(self, parameters):
        """Makes the PyTorch optimizer.

        Args:
            parameters: Dict from names to `torch.nn.Parameter` objects.

        Returns:
            A `torch.optim.Optimizer`, or a list of several for disjoint parameters.
            Their learning rates are set before every step.
        """
        raise NotImplementedError

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        import torch

        self._layouts = [Layout(variable) for variable in variables]
        self._parameters = [
            torch.nn.Parameter(layout.to_torch(variable.value.detach()).clone())
            for layout, variable in zip(self._layouts, variables)
        ]
        names = [layout.name for layout in self._layouts]
        made = self.make(dict(zip(names, self._parameters)))
        self._made = made if isinstance(made, list) else [made]

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        import torch

        for layout, parameter, gradient in zip(self._layouts, self._parameters, grads):
            parameter.grad = layout.to_torch(gradient)
        rate = float(learning_rate)
        for group in (g for one in self._made for g in one.param_groups):
            own = rate * group.get("rate_scale", 1.0)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(own)
            else:
                group["lr"] = own
        with torch.no_grad():
            for one in self._made:
                one.step()
            for layout, parameter, variable in zip(
                self._layouts, self._parameters, trainable_variables
            ):
                variable.value.copy_(layout.to_keras(parameter))
                parameter.grad = None

    def torch_state_size(self):
        """The elements and bytes of the PyTorch optimizer's state, without counters."""
        tensors = {}
        seen = {id(parameter): parameter for parameter in self._parameters}
        _collect([vars(one) for one in self._made], tensors, seen)
        counted = tensors.values()
        elements = sum(tensor.numel() for tensor in counted)
        return elements, sum(
            tensor.numel() * tensor.element_size() for tensor in counted
        )


def _collect(value, tensors, seen):
    """Finds every non-scalar tensor in nested Python objects.

    Args:
        value: The nested objects.
        tensors: Dict from data pointers to the tensors, which this function extends.
        seen: Dict from `id`s to the visited objects, which must stay alive.
    """
    import torch

    if id(value) in seen:
        return
    seen[id(value)] = value
    if hasattr(value, "__tensor_flatten__"):  # A quantized tensor consists of several.
        names, _ = value.__tensor_flatten__()
        for name in names:
            _collect(getattr(value, name), tensors, seen)
    elif isinstance(value, torch.Tensor):
        if value.ndim:
            tensors[value.untyped_storage().data_ptr()] = value
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, tensors, seen)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _collect(item, tensors, seen)
    elif type(value).__module__.partition(".")[0] in _PACKAGES:
        _collect(vars(value), tensors, seen)


def _split(parameters, names):
    """The parameters whose names match an expression, and all others."""
    found = [p for name, p in parameters.items() if names.search(name)]
    others = [p for name, p in parameters.items() if not names.search(name)]
    return found, others


def _hidden(parameters):
    """The kernels of attention and feed-forward layers, and all others."""
    return _split(parameters, _HIDDEN)


def _width(parameters):
    return parameters["embed_tokens.weight"].shape[1]


class AdamW(TorchOptimizer):
    """PyTorch's Adam, to check that backend and layout do not change the results."""

    def __init__(self, learning_rate=1e-3, beta_2=0.999, **keywords):
        super().__init__(learning_rate, **keywords)
        self.betas = (0.9, beta_2)

    def make(self, parameters):
        from torch.optim import AdamW

        # The epsilon of Keras.
        groups = self.groups(parameters)
        return AdamW(groups, betas=self.betas, eps=1e-7, weight_decay=0.0)

    def groups(self, parameters):
        """Parameter groups, with factors of the learning rate as `rate_scale`."""
        return [{"params": list(parameters.values())}]


class AdamWOfTokens(AdamW):
    """PyTorch's Adam with the `rate_scale` of this library for tokens."""

    def groups(self, parameters):
        """Embeddings and output projection, and all others."""
        tokens, others = _split(parameters, _TOKENS)
        return [{"params": tokens, "rate_scale": TOKEN_SCALE}, {"params": others}]


class Adam8bit(AdamW):
    """8-bit moments with one scale per block: Dettmers et al., 2021."""

    def make(self, parameters):
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(list(parameters.values()), betas=self.betas, weight_decay=0.0)


class Adam4bit(AdamW):
    """4-bit moments: Li et al., 2023."""

    def make(self, parameters):
        from torchao.optim import AdamW4bit

        return AdamW4bit(parameters.values(), betas=self.betas, weight_decay=0.0)


class _Projected(AdamW):
    """The parameter groups of GaLore, Fira and APOLLO."""

    def groups(self, parameters, **of_hidden):
        """Parameter groups, with a rank for the hidden matrices."""
        hidden, others = _hidden(parameters)
        of_hidden.setdefault("rank", _width(parameters) // RANK_SHARE)
        own = {"params": hidden, "update_proj_gap": 200}
        return [{"params": others}, own | of_hidden]


class GaLore(_Projected):
    """Adam in the leading singular subspace of the gradient: Zhao et al., 2024."""

    def make(self, parameters):
        from galore_torch import GaLoreAdamW

        return GaLoreAdamW(
            self.groups(parameters, scale=0.25, proj_type="std"),
            betas=self.betas,
            no_deprecation_warning=True,
        )


class Apollo(_Projected):
    """One scale per channel, from Adam in a random projection: Zhu et al., 2024."""

    def make(self, parameters):
        from apollo_torch import APOLLOAdamW

        groups = self.groups(
            parameters,
            scale=1.0,
            proj="random",
            proj_type="std",
            scale_type="channel",
        )
        return APOLLOAdamW(groups, betas=self.betas)


class ApolloMini(_Projected):
    """APOLLO with rank 1 and one scale per matrix."""

    def make(self, parameters):
        from apollo_torch import APOLLOAdamW

        groups = self.groups(
            parameters,
            rank=1,
            scale=128.0,
            proj="random",
            proj_type="std",
            scale_type="tensor",
        )
        return APOLLOAdamW(groups, betas=self.betas, scale_front=False)


class Fira(_Projected):
    """GaLore plus the scaled residual of the gradient: Chen et al., 2024."""

    def make(self, parameters):
        from pytorch_optimizer import Fira

        groups = self.groups(parameters, scale=0.25, projection_type="std")
        return Fira(groups, betas=self.betas)


class AdamMini(AdamW):
    """One second moment per block: Zhang et al., 2024."""

    def make(self, parameters):
        from adam_mini import Adam_mini

        width = _width(parameters)
        return Adam_mini(
            parameters.items(),
            betas=self.betas,
            dim=width,
            n_heads=4,
            verbose=False,
        )


class Came(AdamW):
    """Adafactor with a confidence and full momentum: Luo et al., 2023."""

    def make(self, parameters):
        from came_pytorch import CAME

        betas = (*self.betas, 0.9999)
        return CAME(list(parameters.values()), lr=1e-3, betas=betas)


class Soap(AdamW):
    """Adam in the eigenbasis of Shampoo: Vyas et al., 2024."""

    def make(self, parameters):
        from pytorch_optimizer import SOAP

        # As in the paper, axes of the vocabulary get no basis.
        return SOAP(
            list(parameters.values()),
            betas=(0.95, self.betas[1]),
            weight_decay=0.0,
            max_precondition_dim=1024,
        )


class Racs(TorchOptimizer):
    """Row and column scaling without momentum: Gong et al., 2025."""

    def make(self, parameters):
        from pytorch_optimizer import RACS

        hidden, others = _hidden(parameters)
        return RACS([{"params": hidden}, {"params": others}], weight_decay=0.0)


class Muon(AdamW):
    """PyTorch's Muon: orthogonalized momentum for hidden matrices, Adam for others.

    Jordan et al., 2024, with the scale of Liu et al., 2025, so that both have the same
    learning rate.
    """

    def make(self, parameters):
        from torch.optim import AdamW, Muon

        hidden, others = _hidden(parameters)
        muon = Muon(hidden, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        return [muon, AdamW(others, betas=self.betas, eps=1e-7, weight_decay=0.0)]
