"""What NCCL has to hear of the links between nodes, where its own choice is known to go wrong.

NCCL finds adapters and routes by itself; so each variable here stands for a fault that it would not see. Left out on
purpose: NCCL_IB_GID_INDEX (NCCL takes the RoCE v2 address by itself since 2.21; a fixed index is wrong on the next
cluster), NCCL_IB_HCA and NCCL_IB_TC (no two clusters agree; name them in the cluster's `environment`),
TORCH_NCCL_ASYNC_ERROR_HANDLING (PyTorch ends a rank whose collective failed by default), FI_EFA_USE_DEVICE_RDMA and
FI_EFA_FORK_SAFE (of no effect since libfabric 1.18 and Linux 5.15).
"""

import os
from collections.abc import Mapping

from launch.clusters.description import Cluster, Link

# An adapter that does not come up is an error. Otherwise NCCL goes on over TCP without a word, many times slower.
RDMA_OR_NOTHING = {"NCCL_NET": "IB"}
# A switch that reroutes, or a port that comes back, is silent for seconds, and a connection that gave up is lost for
# good. 4.096 us * 2^22 is 17 s a try; NCCL's default is 2^20. Its manual asks for more in very large networks, where a
# run otherwise ends with error 12 of ibv_poll_cq.
PATIENCE = {"NCCL_IB_TIMEOUT": "22"}
# Bridges of containers and virtual machines have the same address on every node, and lead nowhere. NCCL itself leaves
# out only lo and docker. With InfiniBand it prefers ib*, and a list of ours would switch that off.
ROUTED = {"NCCL_SOCKET_IFNAME": "^lo,docker,veth,virbr,cni,flannel,cali"}

VARIABLES: dict[Link, dict[str, str]] = {
    "infiniband": {**RDMA_OR_NOTHING, **PATIENCE},
    "roce": {**ROUTED, **RDMA_OR_NOTHING, **PATIENCE},
    # libfabric takes EFA or fails; its provider for TCP would do, many times slower. Without huge pages a rank can fork
    # (git, nvidia-smi, wandb): with them the copy fails where none is left.
    "efa": {**ROUTED, "FI_PROVIDER": "efa", "FI_EFA_USE_HUGE_PAGE": "0"},
    # Many Ethernet adapters speak RoCE. In a network that was not set up for it NCCL would choose it, and hang.
    "ethernet": {**ROUTED, "NCCL_IB_DISABLE": "1"},
}


def variables(link: Link, nodes: int) -> dict[str, str]:
    """The variables of a link between so many nodes; none where there is one node, which has no link to others."""
    return dict(VARIABLES[link]) if nodes > 1 else {}


def link_of(cluster: Cluster) -> Link:
    """The link that ranks can use: pods that are given no RDMA adapter have Ethernet alone."""
    pods = cluster.kind == "kubernetes"
    return "ethernet" if pods and not cluster.kubernetes.rdma_resource else cluster.link


def environment(cluster: Cluster, nodes: int, own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a start on a cluster sets: the link's variables, over them the user's `own`, over both the cluster's."""
    told = variables(link_of(cluster), nodes)
    return {name: own.get(name, value) for name, value in told.items()} | cluster.environment
