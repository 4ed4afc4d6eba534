"""What every room needs: errors, files, worker processes, the terminal. Imports no other room."""
