"""When actors fail: an exception leaves the actor as it is; a death says why, and can be followed by a restart."""

import os

import skate
from skate.exceptions import ActorDiedError


@skate.remote
class Account:
    def __init__(self, balance: int) -> None:
        if balance < 0:
            raise ValueError("no credit here")
        self.balance = balance

    def withdraw(self, amount: int) -> int:
        if amount > self.balance:
            raise LookupError(f"only {self.balance} left")
        self.balance -= amount
        return self.balance

    def crash(self) -> None:
        os._exit(3)

    def restarted(self) -> bool:
        return skate.get_runtime_context().was_current_actor_reconstructed


def last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


if __name__ == "__main__":
    skate.init(num_cpus=2)

    account = Account.remote(100)
    try:
        skate.get(account.withdraw.remote(500))
    except LookupError as error:
        print("an exception:", last_line(error))
    print("and the actor lives on:", skate.get(account.withdraw.remote(30)))

    overdrawn = Account.remote(-1)
    try:
        skate.get(overdrawn.withdraw.remote(1))
    except ActorDiedError as error:
        print("a constructor that fails:", last_line(error))

    try:
        skate.get(account.crash.remote())
    except ActorDiedError as error:
        print("a crash:", "exit status 3" in str(error))
    try:
        skate.get(account.withdraw.remote(1))
    except ActorDiedError as error:
        print("dead for good:", type(error).__name__)

    # With restarts it begins anew; calls with retries ride it out.
    phoenix = Account.options(max_restarts=1, max_task_retries=1).remote(100)
    skate.get(phoenix.withdraw.remote(99))
    phoenix.crash.options(max_task_retries=0).remote()
    print("a new life, from the constructor on:", skate.get(phoenix.withdraw.remote(10)))
    print("and it knows:", skate.get(phoenix.restarted.remote()))

    skate.kill(phoenix)
    try:
        skate.get(phoenix.withdraw.remote(1))
    except ActorDiedError as error:
        print("killed:", "kill" in str(error))

    skate.shutdown()
