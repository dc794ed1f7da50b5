"""Runs the whole of KalshiBook on one machine: broker, database, cache, exchange (simulator or the real one) and all services.

Promises: one supervisor a KB_HOME; nothing outlives it, and what a killed one left is found (by pid and birth) and
stopped by the next; a service that dies is started again with backoff and told; on a signal the services are stopped in
the direction of the flow, each after it has drained what it accepted; `state.json` tells all of it, every second, whole
or not at all. Every failure is one line that says what to do (`SupervisorError`, or the stack's `StackError`).
"""
