"""Stage 2: this corpus comes without noises."""

if __name__ == "__main__":
    print("no noises")
