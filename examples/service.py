"""A service that normalises requests from several threads: one module in evaluation mode and one queue per worker.

Requests wait in a queue.Queue and are answered through futures. A request whose deadline has passed before a worker is
free is refused rather than computed. Kernels are compiled before the first request; the shutdown lets workers finish
what was accepted. All answers are compared with float64 NumPy; the exit status is 1 where one differs or is missing.
"""

import queue
import sys
import threading
import time
from concurrent.futures import Future

import numpy as np

import oclbn
import oclbn.device
from oclbn import BatchNorm2D, gpuarray

CHANNELS, SIZE, WORKERS = 16, 28, 3


class Service:
    """Workers that evaluate a batch normalization with given weights (the bytes that `save` returns)."""

    def __init__(self, weights, workers=WORKERS):
        self._requests = queue.Queue()
        modules = []
        for _ in range(workers):
            # queue_for: a queue for each, all of one context. inplace: y over x, which nobody needs afterwards.
            bn = BatchNorm2D(CHANNELS, queue=oclbn.device.queue_for(), empty=True, inplace=True)
            bn.load(weights)
            bn.evalMode()
            modules.append(bn)
        # Compile now: the first request waits no longer than others.
        oclbn.prepare([(1, CHANNELS, SIZE, SIZE)], operations="infer", queue=modules[0].queue)
        self._threads = [threading.Thread(target=self._work, args=(bn,)) for bn in modules]
        for thread in self._threads:
            thread.start()

    def submit(self, image, deadline):
        """A future of the normalised image, (C, H, W); `deadline` is a time of time.monotonic()."""
        future = Future()
        self._requests.put((image, deadline, future))
        return future

    def close(self):
        """Answer what was accepted, then end all workers."""
        for _ in self._threads:
            self._requests.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, bn):
        while (request := self._requests.get()) is not None:
            image, deadline, future = request
            if not future.set_running_or_notify_cancel():
                continue
            if time.monotonic() >= deadline:
                future.set_exception(TimeoutError("the deadline passed before a worker was free"))
                continue
            try:
                x = gpuarray.to_gpu(image[np.newaxis], queue=bn.queue)
                future.set_result(bn(x).get()[0])
            except Exception as error:  # of this request alone: the worker goes on with the next one
                future.set_exception(error)


def trained():
    """A module as training leaves it."""
    bn = BatchNorm2D(CHANNELS, seed=0)
    rng = np.random.default_rng(0)
    for _ in range(5):
        bn(gpuarray.to_gpu(rng.normal(3, 2, (8, CHANNELS, SIZE, SIZE)).astype(np.float32)))
    return bn


def main():
    bn = trained()
    print(bn.queue.device.name.strip(), file=sys.stderr)
    service = Service(bn.save())

    rng = np.random.default_rng(1)
    images = [rng.normal(3, 2, (CHANNELS, SIZE, SIZE)).astype(np.float32) for _ in range(40)]
    in_time, too_late = time.monotonic() + 60, time.monotonic()
    answers = [service.submit(image, too_late if n % 10 == 9 else in_time) for n, image in enumerate(images)]
    wrong = service.submit(images[0][:3], in_time)  # 3 channels instead of 16
    service.close()

    refused = sum(isinstance(answer.exception(), TimeoutError) for answer in answers)
    print(f"{len(answers) - refused} requests answered by {WORKERS} workers, {refused} came too late")
    print("a request with 3 channels:", type(wrong.exception()).__name__)

    scale, bias, mean, var = (array.get().astype(np.float64)[0] for array in (bn.scale, bn.bias, bn.mean, bn.var))
    difference, answered = 0.0, 0
    for image, answer in zip(images, answers, strict=True):
        if answer.exception() is None:
            exact = (image - mean) / np.sqrt(var + bn.epsilon) * scale + bias
            difference, answered = max(difference, np.abs(answer.result() - exact).max()), answered + 1
    right = answered == 36 and refused == 4 and difference < 1e-5
    print(f"as in NumPy: {'yes' if difference < 1e-5 else f'no, off by {difference:.2g}'}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
