"""Match a prior over cluster sizes to the clusters at hand."""

import torch
from torch import Tensor

from selavi.ops._library import Backend, primitives


def permute_prior(prior: Tensor, mass: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Rearrange `prior` so that its largest entry goes to the heaviest cluster, and so on down.

    This minimises the assignment's objective over all orders of the prior (SeLaVi, eq. 3-4): the
    terms that depend on the order are -sum_k mass_k R_k log R_k.

    Args:
        prior: (K,) or (..., K), any real numbers.
        mass: (..., K), each cluster's mass. Ties go to the lowest index.
        backend: as in `selavi.ops.sinkhorn`.

    Returns:
        (..., K), of prior's dtype on mass's device, with prior's numbers in their new order.

    Raises:
        ValueError: shapes that do not match, or NaN (not looked for in compiled code).
        TypeError: a dtype that is not floating.
    """
    for name, tensor in (("prior", prior), ("mass", mass)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}; expected a floating dtype")
        if not torch.compiler.is_compiling() and tensor.isnan().any():
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} contains NaN")
    if mass.ndim < 1 or prior.shape not in (mass.shape, mass.shape[-1:]):
        raise ValueError(
            f"prior has shape {tuple(prior.shape)}; expected {tuple(mass.shape[-1:])} or the shape "
            f"of mass, {tuple(mass.shape)}"
        )
    rows = mass.reshape(-1, mass.shape[-1]).double().contiguous()
    wide = prior.to(mass.device).expand_as(mass).reshape(rows.shape).double().contiguous()
    permuted = primitives(backend, rows).permute_prior(wide, rows)
    return permuted.reshape(mass.shape).to(prior.dtype)
