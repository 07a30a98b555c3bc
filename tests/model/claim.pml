/* Row 6: who may claim on an address that lies on its interface.
 *
 * Both nodes may hold the virtual address at once and for ever: a dead address manager leaves it
 * where it was. An instance of the address is new each time it is put on an interface. A node may claim
 *   (i)   with an instance that no epoch used,
 *   (ii)  with the one that the newest epoch used, if that epoch is its own (a restart),
 *   (iii) with a used one, when the newest epoch is marked released or its heartbeat stands still.
 * An owner whose address goes marks its epoch released, or, when it came back in time, notes the new
 * instance as used by the same epoch. A claim links exactly the next epoch, so of two that decided
 * together one finds the name taken. A fault may leave a process dead, stopped (its heartbeat stands
 * still, yet it lives) or without its address; there are FAULTS of them, and afterwards one node at
 * least runs and has the address.
 *
 * Promises (under weak fairness):
 *   no_ping_pong    the nodes do not take it from each other without end
 *   somebody_owns   again and again a running node that has the address owns
 *   no_return       nobody takes it from a living owner by an instance that he himself has served with
 *
 * Wrong: WHEN_HERE           claims whenever the address is here
 *        LEFT_AND_RETURNED   claims only with an instance that no epoch used
 *        FORGETS             what came back within the grace is not noted as used
 */
#define FAULTS 4
#define NOBODY 2

bool runs[2], stopped[2];      /* the process; stopped as by SIGSTOP */
bool here[2];                  /* the address on this node's interface */
bool used[2];                  /* some epoch used the instance that is here */
bool tenure[2];                /* the process believes that it owns */
bool overtaken[2];             /* since this node looked, another linked an epoch */
byte owner = NOBODY;           /* of the newest epoch */
bool same_instance = false;    /* the newest epoch used what its owner has here */
bool released = false;         /* byte 1 of the newest epoch: R */
bool served[2];                /* this node was owner with the instance that is here */
bool returns = false;          /* a node took the ownership back from a living owner by it */

#define SILENT (owner != NOBODY && (!runs[owner] || stopped[owner] || !tenure[owner]))
#if defined(WHEN_HERE)
#define MAY_CLAIM true
#elif defined(LEFT_AND_RETURNED)
#define MAY_CLAIM (!used[me])
#else
#define MAY_CLAIM (!used[me] || (owner == me && same_instance) || released || SILENT)
#endif

#define OWNS(n) (owner == n && tenure[n] && runs[n] && !stopped[n] && here[n] && !released)
ltl no_ping_pong { !([]<> (owner == 0) && []<> (owner == 1)) }
ltl somebody_owns { []<> (OWNS(0) || OWNS(1)) }
ltl no_return { [] !returns }

proctype node(byte me) {
end:
  do
  :: atomic { runs[me] && !stopped[me] && !tenure[me] && here[me] && MAY_CLAIM ->
       overtaken[me] = false;
       returns = returns || (served[me] && owner == 1 - me && !released && !SILENT) };
     /* the rule was looked at; now the link, any time later */
     atomic {
       runs[me] && !stopped[me] || !runs[me] ->
       if
       :: runs[me] && here[me] && !overtaken[me] ->
          owner = me; released = false; same_instance = true; used[me] = true;
          tenure[me] = true; overtaken[1 - me] = true; served[me] = true
       :: else
       fi;
       overtaken[me] = false
     }
  :: atomic { runs[me] && !stopped[me] && tenure[me] && owner != me -> tenure[me] = false }
     /* it came back within the grace: the epoch goes on, and its file says that it used this one */
  :: atomic { runs[me] && !stopped[me] && tenure[me] && owner == me && here[me] && !served[me] ->
#ifndef FORGETS
       used[me] = true; same_instance = true;
#endif
       served[me] = true }
  :: atomic { runs[me] && !stopped[me] && tenure[me] && owner == me && !here[me] ->
       tenure[me] = false; released = true }
  od
}

inline put_address(n) {
  here[n] = true; used[n] = false; served[n] = false;
  if
  :: owner == n -> same_instance = false
  :: else
  fi
}

inline fault(n) {
  if
  :: runs[n] -> runs[n] = false; tenure[n] = false; stopped[n] = false
  :: !runs[n] -> runs[n] = true
  :: runs[n] && !stopped[n] -> stopped[n] = true
  :: stopped[n] -> stopped[n] = false
  :: here[n] -> here[n] = false
  :: !here[n] -> put_address(n)
  fi
}

proctype world() {
  byte faults = 0;
  do
  :: atomic { faults < FAULTS -> faults++; fault(0) }
  :: atomic { faults < FAULTS -> faults++; fault(1) }
  :: break
  od;
  atomic { /* the end of all faults: a stopped one goes on, and one node at least can serve */
    faults = 0; stopped[0] = false; stopped[1] = false;
    if
    :: runs[0] && here[0]
    :: runs[1] && here[1]
    :: else ->
       if
       :: runs[0] = true;
          if
          :: here[0]
          :: else -> put_address(0)
          fi
       :: runs[1] = true;
          if
          :: here[1]
          :: else -> put_address(1)
          fi
       fi
    fi
  }
}

init {
  atomic {
    runs[0] = true; runs[1] = true;
    if
    :: here[0] = true
    :: here[0] = true; here[1] = true
    fi;
    run node(0); run node(1); run world()
  }
}
