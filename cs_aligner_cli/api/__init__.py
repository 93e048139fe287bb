"""What notebooks and programs call: whole runs, adapters on arrays, alignments in closed form."""
