"""A mailbox that three workers write to and the program empties now and then: an actor is state that many share."""

import time

import skate

MESSAGES = 4


@skate.remote
class MessageActor:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def add_message(self, message: str) -> None:
        self.messages.append(message)

    def get_and_clear_messages(self) -> list[str]:
        messages, self.messages = self.messages, []
        return messages


@skate.remote
def worker(message_actor: MessageActor, worker_id: int) -> None:
    for i in range(MESSAGES):
        time.sleep(0.05)
        message_actor.add_message.remote(f"Message {i} from worker {worker_id}.")


if __name__ == "__main__":
    skate.init(num_cpus=3)

    message_actor = MessageActor.remote()
    workers = [worker.remote(message_actor, j) for j in range(3)]

    received: list[str] = []
    while len(received) < 3 * MESSAGES:
        new_messages = skate.get(message_actor.get_and_clear_messages.remote())
        if new_messages:
            print("New messages:", new_messages)
        received += new_messages
        time.sleep(0.02)

    print("messages:", len(received))
    for j in range(3):
        mine = [message for message in received if message.endswith(f"worker {j}.")]
        print(f"worker {j} in order:", mine == sorted(mine))

    skate.shutdown()
