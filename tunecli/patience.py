"""How long a command makes its user wait that a signal asks to stop: five seconds in all, shared out here."""

PAUSE_SECONDS = 0.1
"""How long trials are trained before a search looks at signals and lets its events be shown."""

REST_SECONDS = 1.5
"""For the steps that workers are in; what a longer one is for goes on from an earlier snapshot."""

STOP_SECONDS = 2.5
"""For the snapshots, those steps included."""

LEAVE_SECONDS = 3.5
"""For all that can be done in order; then the process ends as it is."""

AT_ONCE_SECONDS = 0.5
"""For what is left to do after a second signal."""
