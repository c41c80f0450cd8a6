"""The worker: leases tasks from the service and runs them in child processes.

The main process holds the stream to the service and never unpickles; the children run the tasks and never speak gRPC.

    cli -> worker -> link (stream) -> ledger (leases held, settlements owed)
                  -> pool (dispatch) -> child_process == socket and progress page ==> child -> runner -> handler

Nothing is imported here: a child must not pay for gRPC, and the main process need not know how tasks run.
"""
