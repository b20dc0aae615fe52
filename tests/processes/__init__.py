"""Real processes: fork, spawn, SIGKILL, SIGSTOP, interrupts; judged by a witness of its own."""
