"""A run on many workers: processes, flow runs of a work pool, Ray or Dask tasks.

In the order in which to read it:

- what is said: `job.py` (when a worker is started), `messages.py`, `channel.py` (signed objects of
  the output);
- the worker: `worker.py`;
- the run: `open_crew.py`, `crew.py` (all workers), `member.py` (one of them), and `answer.py`, the
  task that hands a batch over;
- what starts workers: `engine.py`, and for each engine how it does that: `threads.py`;
  `processes.py` and in them `process.py`; `work_pool.py` with `deployment.py`, and as the flow
  `worker_flow.py`; `hosted_engine.py` and in another process `engine_host.py`, which has
  `ray_engine.py` or `dask_engine.py`, whose tasks are in `cluster_task.py`.
"""
