"""Functions of other libraries, with their names, arguments and meaning, on selavi's operators.

    from selavi.ops.compat import pot as ot                  # sinkhorn, sinkhorn2 of POT 0.9.7
    from selavi.ops.compat import geomloss                   # solve of geomloss.ot 0.3.1
    from selavi.ops.compat.swav import distributed_sinkhorn  # of SwAV's training script
    from selavi.ops.compat.dino import sinkhorn_knopp_teacher, ibot_sinkhorn_knopp_teacher

pot and geomloss solve to a tolerance, in far fewer reads of the cost than plain iteration, and
return what they were given: tensors, or NumPy arrays. swav and dino do exactly the number of
iterations asked for, without acceleration. Everything is computed in the log domain, so nothing
overflows. Each module says where it differs from its original. Importing them needs torch alone.
"""
