"""What the commands of Slurm answer at sites of different kinds, as far as the parsers read it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

CONFIG = """Configuration data as of 2026-01-05T10:00:00
AccountingStorageEnforce = associations,limits,qos
AccountingStorageType   = accounting_storage/slurmdbd
ClusterName             = site
GresTypes               = gpu
JobRequeue              = 1
MaxArraySize            = 1001
PreemptMode             = REQUEUE
PreemptParameters       = (null)
PreemptType             = preempt/partition_prio
SelectType              = select/cons_tres
SelectTypeParameters    = CR_CORE_MEMORY
SLURM_VERSION           = 22.05.8
SlurmctldParameters     = preempt_send_user_signal

Slurmctld(primary) at controller is UP
"""

SINFO = """cpu*|up|1-00:00:00|40|mixed|64|256000|(null)
gpu|up|2-00:00:00|2|idle|64|512000|gpu:a100:4(S:0-1)
gpu|up|2-00:00:00|1|drained|64|512000|gpu:a100:4(S:0-1)
gpu|up|2-00:00:00|1|mixed|96|768000|gpu:h100:8(S:0-1),mps:800
dev|up|1:00:00|1|idle|32|128000|gpu:2
old|inact|infinite|0|n/a|0|0|(null)
"""

PARTITIONS = """PartitionName=cpu AllowAccounts=ALL AllowQos=ALL Default=YES MaxNodes=UNLIMITED MinNodes=0 OverSubscribe=NO PreemptMode=OFF
PartitionName=gpu AllowAccounts=ml,vision AllowQos=normal,long Default=NO MaxNodes=2 MinNodes=1 OverSubscribe=EXCLUSIVE PreemptMode=OFF
PartitionName=dev DenyAccounts=guest AllowQos=ALL MaxNodes=UNLIMITED MinNodes=0 OverSubscribe=NO PreemptMode=REQUEUE ReqResv=YES DefMemPerCPU=2000
"""  # noqa: E501

USER = "site|ml|vision|||normal|1-00:00:00|\nsite|ml|ml||normal|long,normal||100\nelsewhere|ml|other|||normal||\n"
QOS = "normal||||\nlong|7-00:00:00|20|gres/gpu=8|PartitionTimeLimit\n"
BALANCES = """Current Association Manager state
ClusterName=site Account=ml UserName= Partition= ID=3 ParentAccount=physics(2) GrpTRESMins=cpu=N(91),gres/gpu=600(590)
ClusterName=site Account=ml UserName=alice(1000) Partition= ID=4 GrpTRESMins=cpu=N(5),gres/gpu=60(70)
ClusterName=site Account=ml UserName=bob(1001) Partition= ID=5 GrpTRESMins=gres/gpu=9(1)
"""

PARENT = "ClusterName=site Account=physics UserName= ID=2 ParentAccount=root(1) GrpTRESMins=billing=50(50)\n"

ANSWERS = {
    "scontrol show config": CONFIG,
    "sinfo": SINFO,
    "scontrol --oneliner show partition": PARTITIONS,
    "sacctmgr --noheader --parsable2 --readonly show user": USER,
    "sacctmgr --noheader --parsable2 --readonly show qos": QOS,
    "scontrol --oneliner show assoc_mgr accounts=physics": PARENT,
    "scontrol --oneliner show assoc_mgr accounts=root": "",
    "scontrol --oneliner show assoc_mgr": BALANCES,
}


class Site:
    """A mock of Slurm's commands: it has a prepared answer for the start of each command, and stores what was asked.

    A real site of this kind cannot be made in a test: it has many kinds of nodes, and commands that are forbidden.
    """

    def __init__(self, forbidden: Sequence[str] = (), **changed: str) -> None:
        self.answers = {**ANSWERS, **changed}
        self.forbidden = forbidden
        self.asked: list[str] = []

    def __call__(self, command: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        text = " ".join(command)
        self.asked.append(text)
        if text.startswith(tuple(self.forbidden)):
            return subprocess.CompletedProcess(command, 1, "", f"{command[0]}: error: Access/permission denied\n")
        answer = next(answer for start, answer in self.answers.items() if text.startswith(start))
        return subprocess.CompletedProcess(command, 0, answer, "")
