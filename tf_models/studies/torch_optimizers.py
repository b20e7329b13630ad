"""Low-memory optimizers of PyTorch, by their authors' own code, for Keras models.

Under `KERAS_BACKEND=torch` each of them trains a Keras model as any Keras optimizer
does: schedules, `fit` and validation stay Keras's, and the step is the package's. The
packages are in the extra `peers`; none of their code is here.

PyTorch lays a matrix out as (outputs, inputs), Keras as (inputs, outputs) and the
kernels of attention in three axes. For methods that treat rows and columns, or the
blocks of a head, differently, each gets parameters as PyTorch's own layers would have
them, under the names that such models use.

Matrices that the papers leave to Adam (embeddings, the matrix of the logits, vectors)
are left to it here, too, in the same package.
"""

import re

import keras
import numpy as np

from et_optimizer.optimizers.rate_scales import OF_TOKENS

RANK_SHARE = 4  # A quarter of the width, as the papers of GaLore and APOLLO have it.
# From Keras's paths to the names of parameters in PyTorch's language models.
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
# Packages whose helpers hold tensors as attributes.
_PACKAGES = ("apollo_torch", "galore_torch", "pytorch_optimizer", "bitsandbytes")
_TOKENS = re.compile(r"^(embed|lm_head\.weight)")
_HIDDEN = re.compile(r"(self_attn|mlp)\..*weight")


def torch_name(path):
    """The name that a model in PyTorch would give the variable of a Keras path."""
    for pattern, name in _NAMES:
        path = re.sub(pattern, name, path)
    return path


class Layout:
    """How a Keras variable lies in PyTorch.

    Args:
        variable: A `keras.Variable` of at most three axes.

    Attributes:
        name: Its name there.
        shape: Its shape there.
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
            # The output of attention has its inputs in two axes, the others theirs in
            # one.
            inputs = int(np.prod(shape[:-1])) if "o_proj" in self.name else shape[0]
            self._rows, self._is_turned = (inputs, int(np.prod(shape)) // inputs), True
        self.shape = self._rows[::-1] if self._is_turned else self._rows

    def to_torch(self, value):
        """A tensor of Keras's shape in PyTorch's, contiguous."""
        value = value.reshape(self._rows)
        return (value.t() if self._is_turned else value).contiguous()

    def to_keras(self, value):
        """The way back."""
        return (value.t() if self._is_turned else value).reshape(self._own)


class TorchOptimizer(keras.optimizers.Optimizer):
    """An optimizer of PyTorch as a Keras optimizer, under the backend "torch".

    Subclasses say which, in `make`. It keeps parameters in PyTorch's layout beside
    Keras's variables, which in a model of PyTorch would be the weights themselves, and
    which are not counted as state.

    Args:
        learning_rate: A float or a Keras schedule.
        **keywords: As every Keras optimizer takes them.
    """

    def __init__(self, learning_rate=1e-3, **keywords):
        if keras.backend.backend() != "torch":
            raise RuntimeError(
                f"{type(self).__name__} runs on PyTorch; received Keras's backend "
                f"{keras.backend.backend()!r}. Set KERAS_BACKEND=torch before Keras is "
                "imported."
            )
        super().__init__(learning_rate=learning_rate, **keywords)

    def make(self, parameters):
        """Makes the optimizer of PyTorch.

        Args:
            parameters: Dict from names to `torch.nn.Parameter`s.

        Returns:
            A `torch.optim.Optimizer`, or a list of them that share the parameters out.
            Their rates are set before every step.
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

    def held_elsewhere(self):
        """Numbers and bytes that the optimizer of PyTorch holds, counters left out."""
        tensors = {}
        seen = {id(parameter): parameter for parameter in self._parameters}
        _collect([vars(one) for one in self._made], tensors, seen)
        counted = tensors.values()
        numbers = sum(tensor.numel() for tensor in counted)
        return numbers, sum(
            tensor.numel() * tensor.element_size() for tensor in counted
        )


def _collect(value, tensors, seen):
    """Finds every tensor of more than a number in a nest of Python's objects.

    Args:
        value: The nest.
        tensors: Dict that takes them, by where their numbers are.
        seen: Dict of the objects that were looked at, by their `id`s, which are theirs
            as long as they are kept.
    """
    import torch

    if id(value) in seen:
        return
    seen[id(value)] = value
    if hasattr(value, "__tensor_flatten__"):  # Quantized: several tensors in one.
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


def _parted(parameters, names):
    """The parameters whose names an expression is found in, and all others."""
    found = [p for name, p in parameters.items() if names.search(name)]
    others = [p for name, p in parameters.items() if not names.search(name)]
    return found, others


def _hidden(parameters):
    """The matrices of attention and feed-forward layers, and all others."""
    return _parted(parameters, _HIDDEN)


def _width(parameters):
    return parameters["embed_tokens.weight"].shape[1]


class AdamW(TorchOptimizer):
    """PyTorch's own Adam: the check that backends and layouts change nothing."""

    def __init__(self, learning_rate=1e-3, beta_2=0.999, **keywords):
        super().__init__(learning_rate, **keywords)
        self.betas = (0.9, beta_2)

    def make(self, parameters):
        from torch.optim import AdamW

        # The epsilon of Keras's.
        parts = self.parts(parameters)
        return AdamW(parts, betas=self.betas, eps=1e-7, weight_decay=0.0)

    def parts(self, parameters):
        """PyTorch's groups of parameters, with what their rates are multiplied by."""
        return [{"params": list(parameters.values())}]


class AdamWOfTokens(AdamW):
    """PyTorch's Adam whose tokens have the rate that this library gives them."""

    def parts(self, parameters):
        """Tokens, and all else."""
        tokens, others = _parted(parameters, _TOKENS)
        return [{"params": tokens, "rate_scale": OF_TOKENS}, {"params": others}]


class Adam8bit(AdamW):
    """Moments in 8 bits with a scale a block: Dettmers et al., 2021."""

    def make(self, parameters):
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(list(parameters.values()), betas=self.betas, weight_decay=0.0)


class Adam4bit(AdamW):
    """Moments in 4 bits: Li et al., 2023."""

    def make(self, parameters):
        from torchao.optim import AdamW4bit

        return AdamW4bit(parameters.values(), betas=self.betas, weight_decay=0.0)


class _Projected(AdamW):
    """What GaLore, Fira and APOLLO share: a group of the hidden matrices."""

    def groups(self, parameters, **of_hidden):
        """Groups of parameters, the hidden matrices with a rank."""
        hidden, others = _hidden(parameters)
        of_hidden.setdefault("rank", _width(parameters) // RANK_SHARE)
        own = {"params": hidden, "update_proj_gap": 200}
        return [{"params": others}, own | of_hidden]


class GaLore(_Projected):
    """Adam in the leading directions of the gradient: Zhao et al., 2024."""

    def make(self, parameters):
        from galore_torch import GaLoreAdamW

        return GaLoreAdamW(
            self.groups(parameters, scale=0.25, proj_type="std"),
            betas=self.betas,
            no_deprecation_warning=True,
        )


class Apollo(_Projected):
    """A scale a channel from Adam in a random projection: Zhu et al., 2024."""

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
    """The same with one direction, and a scale a matrix."""

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
    """GaLore with the rest of the gradient, scaled: Chen et al., 2024."""

    def make(self, parameters):
        from pytorch_optimizer import Fira

        groups = self.groups(parameters, scale=0.25, projection_type="std")
        return Fira(groups, betas=self.betas)


class AdamMini(AdamW):
    """One second moment a block: Zhang et al., 2024."""

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

        # Vocabularies are left without a basis, as the paper does.
        return SOAP(
            list(parameters.values()),
            betas=(0.95, self.betas[1]),
            weight_decay=0.0,
            max_precondition_dim=1024,
        )


class Racs(TorchOptimizer):
    """Rows and columns scaled, no momentum: Gong et al., 2025."""

    def make(self, parameters):
        from pytorch_optimizer import RACS

        hidden, others = _hidden(parameters)
        return RACS([{"params": hidden}, {"params": others}], weight_decay=0.0)


class Muon(AdamW):
    """Orthogonalized momentum for the hidden matrices, Adam for the others.

    Jordan et al., 2024, with the scale of Liu et al., 2025, by which both have one
    rate; PyTorch's own.
    """

    def make(self, parameters):
        from torch.optim import AdamW, Muon

        hidden, others = _hidden(parameters)
        muon = Muon(hidden, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        return [muon, AdamW(others, betas=self.betas, eps=1e-7, weight_decay=0.0)]
